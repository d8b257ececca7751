"""The spine in simulation: real code on a real PostgreSQL, under a virtual clock, one move at a time."""
