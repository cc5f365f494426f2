# SPDX-License-Identifier: BSD-3-Clause
"""embed.py BINARY C-FILE: the guest program's bytes as a C array."""
import sys

data = open(sys.argv[1], "rb").read()
with open(sys.argv[2], "w") as out:
    out.write('#include "vmm/guest_asm.h"\n\n')
    out.write("const unsigned int vfmig_guest_image_size = %d;\n" % len(data))
    out.write("const unsigned char vfmig_guest_image[] = {")
    for i, byte in enumerate(data):
        out.write(("\n    " if i % 16 == 0 else " ") + "0x%02x," % byte)
    out.write("\n};\n")
