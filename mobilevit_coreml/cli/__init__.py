"""The command lines: arguments in, exit codes out. The library never imports them."""
