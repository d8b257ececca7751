"""Serverless-style entry points: one request in, one response out, no memory, no network call."""
