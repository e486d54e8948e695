"""What landmarks are for: planes, measurements, registration, crops, simulated cases."""
