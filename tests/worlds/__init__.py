"""The outside world for tests and the demo: servers behind real HTTP and WebSocket, each runnable alone."""
