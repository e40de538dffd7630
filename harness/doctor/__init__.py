"""What works on this host, tried rather than guessed: the parts, the backends made of them, and the faults on each."""
