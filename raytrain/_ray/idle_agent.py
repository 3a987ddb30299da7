"""A program that stands in for an agent of a raylet: it does nothing, as long as its parent is there."""

import os
import time

if __name__ == "__main__":
    raylet = os.getppid()
    while os.getppid() == raylet:
        time.sleep(1)  # So long it may outlive its parent.
