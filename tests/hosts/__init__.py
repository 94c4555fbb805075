"""Test hosts: systemd machines in containers, with their own sshd and Docker, reached by real ssh."""
