"""What the benchmarks share: the work to be done, the libraries that do it, and how it is measured."""
