"""Says what is wrong with a run, and shows why: `python -m eval.doctor RUN`"""

import sys

from fusion.doctor.doctor import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
