"""Print the address from which this machine reaches another, by the routing table alone: nothing is sent."""

import socket
import sys

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    probe.connect((sys.argv[1], 9))
    sys.stdout.write(probe.getsockname()[0] + "\n")
