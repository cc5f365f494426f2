# SPDX-License-Identifier: BSD-3-Clause
"""embed.py INPUT C-FILE HEADER NAME: a file's bytes as the C array NAME, and NAME_size; HEADER declares them."""
import sys

data = open(sys.argv[1], "rb").read()
header, name = sys.argv[3:]
with open(sys.argv[2], "w") as out:
    out.write('#include "%s"\n\n' % header)
    out.write("const unsigned int %s_size = %d;\n" % (name, len(data)))
    out.write("const unsigned char %s[] = {" % name)
    for i, byte in enumerate(data):
        out.write(("\n    " if i % 16 == 0 else " ") + "0x%02x," % byte)
    out.write("\n};\n")
