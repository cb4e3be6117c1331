"""Generates clients from the OpenAPI document, compiles them, and runs them against a server."""
