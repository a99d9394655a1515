#include "engine/data/data.h"
#include <stdio.h>
#include <string.h>

static const char usage[] =
    "usage: softlaunch data wordnet --wordnet DIR --out DIR [--seed N]\n"
    "                               [--category TRAIN,VALIDATION,TEST]\n"
    "                               [--part-of-speech TRAIN,VALIDATION,TEST]\n"
    "       softlaunch data squad   --train FILE (--dev FILE | --articles VALIDATION,TEST) --out DIR\n"
    "                               [--name NAME] [--topic] [--subset N]\n"
    "       softlaunch data check   --config FILE --model MODEL [--rows N] [--data FILE ...]\n";

int sl_data_main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "--help";

    if (!strcmp(name, "wordnet"))
        return sl_data_wordnet(argc - 1, argv + 1);
    if (!strcmp(name, "squad"))
        return sl_data_squad(argc - 1, argv + 1);
    if (!strcmp(name, "check"))
        return sl_data_check(argc - 1, argv + 1);
    if (!strcmp(name, "--help") || !strcmp(name, "-h")) {
        fputs(usage, argc > 1 ? stdout : stderr);
        return argc > 1 ? 0 : 2;
    }
    fprintf(stderr, "softlaunch data: there is no \"%s\"\n%s", name, usage);
    return 2;
}
