"""Many runs of one config: grids, side by side or in one program."""
