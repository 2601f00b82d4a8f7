"""The command line: every module parses one command and calls one library function."""
