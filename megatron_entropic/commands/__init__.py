"""What the command line runs beside training: one function a command."""
