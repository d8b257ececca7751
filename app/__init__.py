"""Mosaic: a self-hosted bot that turns a mention in a Gitea issue into a gated, receipted pull request."""
