"""The whole path on a tiny model: curate, train, budget forcing, report; on a CPU, offline, in minutes."""
