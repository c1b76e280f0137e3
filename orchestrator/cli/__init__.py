"""The console script ``orchestrator``."""
