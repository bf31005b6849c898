"""Train, evaluate and use AlexNet from the command line.

python run.py --config=configs/quickstart.py --workdir=runs/quickstart
python run.py --config=configs/alexnet.py --workdir=DIR --config.batch_size=256
python run.py --mode=evaluate --workdir=DIR
python run.py --mode=predict --workdir=DIR --images=cat.jpg dog.jpg
python run.py --mode=predict --workdir=DIR --images=FOLDER --out=OUT

`python run.py --help` lists all flags and all fields of a config. Exit codes: 0 done, or stopped by
SIGINT or SIGTERM with everything saved; 2 bad input, a full disk, numbers that are not finite: the
line says what to do; 3 another process of a run of several has ended; 130 or 143 stopped before
there was anything to save.
"""

import os
import signal

if __name__ == "__main__":  # before the imports, which take seconds and open files
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # it is closed: what is written to it would go to the next file opened
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from alexnet_jax.command_line import run

if __name__ == "__main__":
    run()
