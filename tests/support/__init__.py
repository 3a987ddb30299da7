"""What tests share: programs that they start, stores, clusters, small algorithms. It
holds no test."""
