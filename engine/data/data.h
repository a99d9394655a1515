/* `softlaunch data ...`: data sets made and looked at by hand. The worker's main calls
 * sl_data_main. */
#ifndef SL_ENGINE_DATA_H
#define SL_ENGINE_DATA_H

/* argv[0] is "data", argv[1] the subcommand (wordnet, squad, check). Prints to standard output, errors to
 * standard error. Returns the exit status: 0 done, 1 failed, 2 wrong usage. Blocks. */
int sl_data_main(int argc, char **argv);

/* argv[0] is the subcommand's name. */
int sl_data_wordnet(int argc, char **argv);
int sl_data_squad(int argc, char **argv);
int sl_data_check(int argc, char **argv);

#endif
