"""Sub-commands of `stylegan2-compress`, one thin function each: the work is in the rooms."""
