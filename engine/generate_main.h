/* `softlaunch generate`. */
#ifndef SL_ENGINE_GENERATE_MAIN_H
#define SL_ENGINE_GENERATE_MAIN_H

int sl_generate_main(int argc, char **argv);

#endif
