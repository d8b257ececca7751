"""The edges: every HTTP, WebSocket and process call to the outside world is made here, bounded in time and size."""
