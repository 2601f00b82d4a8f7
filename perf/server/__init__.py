"""The server under sweeps of perf_analyzer."""
