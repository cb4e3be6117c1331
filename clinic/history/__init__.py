"""The record history: who changed what, when, and whether anyone has tampered with it."""
