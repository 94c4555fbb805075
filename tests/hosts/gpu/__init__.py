"""The simulated GPU host: proves placement, isolation and reporting; it proves no CUDA."""
