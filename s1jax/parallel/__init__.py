"""The alphabet of axes, the device mesh with its sharding rules, and processes on many hosts."""
