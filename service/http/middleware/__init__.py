"""What every request passes before its route, one concern a module."""
