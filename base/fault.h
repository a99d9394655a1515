/* Points at which a test kills or stops this process, to show that nothing is lost there. They exist in programs
 * built with -DSL_FAULT_POINTS only (tests/faults); elsewhere they are nothing.
 *
 * SL_FAULT_POINT=NAME:kill or NAME:stop in the environment chooses one; it strikes when it is first reached. In a
 * child of the agent it strikes the agent, then the child. With :PATH behind it, it strikes when it can create that
 * file: once, however many children come there. */
#ifndef SL_BASE_FAULT_H
#define SL_BASE_FAULT_H

#ifdef SL_FAULT_POINTS
void sl_fault_point(const char *name);
void sl_fault_point_in_child(const char *name);
#else
#define sl_fault_point(name) ((void)0)
#define sl_fault_point_in_child(name) ((void)0)
#endif

#endif
