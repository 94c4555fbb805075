"""An sshd and a breakable line to it, both on loopback and without any privilege but one's own account's."""
