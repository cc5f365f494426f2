#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""doc_table.py DOCUMENT COMMAND...: puts what the command prints between the document's table marks."""
import pathlib
import subprocess
import sys

BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->"
document = pathlib.Path(sys.argv[1])
table = subprocess.run(sys.argv[2:], check=True, capture_output=True, text=True).stdout
head, rest = document.read_text().split(BEGIN)
document.write_text(head + BEGIN + table + END + rest.split(END)[1])
