"""Which engine runs a graph on this machine: candidates, a trial of each, the choice, what is remembered."""
