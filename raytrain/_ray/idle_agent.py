"""A program that replaces an agent of a raylet: it does nothing while its parent lives."""

import os
import time

if __name__ == "__main__":
    raylet = os.getppid()
    while os.getppid() == raylet:
        time.sleep(1)
