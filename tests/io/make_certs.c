/* SPDX-License-Identifier: BSD-3-Clause */
/* make_certs DIR [NAMES]: credentials of one authority in DIR/a and DIR/b, of another one in DIR/stranger. */
#include <stdio.h>
#include <string.h>

#include "certs.h"

int main(int argc, char **argv)
{
    static const char *const folders[] = {"a", "b", "stranger"};
    const char *names = argc > 2 ? argv[2] : "IP:127.0.0.1";
    struct authority cas[2];

    if (argc < 2 || strlen(argv[1]) > 200)
        return 2;
    authority_init(&cas[0], "tests");
    authority_init(&cas[1], "others");
    for (int i = 0; i < 3; i++) {
        char dir[256];
        snprintf(dir, sizeof(dir), "%s/%s", argv[1], folders[i]);
        certs_write(dir, &cas[i == 2], &cas[i == 2], names, 1);
    }
    authority_done(&cas[0]);
    authority_done(&cas[1]);
    return 0;
}
