"""The record history: who changed what and when. `flask audit verify` finds tampering."""
