"""`raytrain`, with a server whose runs are those of `fake_training`."""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from raytrain.cli import main
from raytrain.server import launcher
from support import fake_training

launcher.PROGRAM = fake_training.PROGRAM

if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # Tests under `nohup` have it ignored.
    main()
