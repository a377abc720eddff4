/* The fuzzer of vmm-init's end of the channel: what the world around it (fuzz_init.c) and the model of its host
 * (fuzz_init_host.c) share. */
#ifndef VMM_FUZZ_INIT_H
#define VMM_FUZZ_INIT_H

#include "../init/guest.h"
#include "fuzzing.h"

/* What processes write: the alphabet over and over, here from letter `from` on, at least VMM_FRAME_MAX of it. */
enum { LETTERS = 26 };
const uint8_t *letters(int from);

/* The model of the host knows what was asked for, and checks everything that the guest says against it. */
void host_reset(void);
/* Bytes that the guest wrote, in order. */
void host_takes(const struct guest *g, const uint8_t *data, size_t size);
/* What the guest wrote so far and the host did not take is gone. */
void host_lost(void);
/* The guest begins a conversation by answering `marker`. */
void host_begins(const struct guest *g, const uint8_t marker[MARKER]);
/* The guest carries out a request. */
void host_asked(struct guest *g, const struct vmm_frame *frame);
/* Whether the guest answered `marker`, and with HELLO. */
bool host_talks(const uint8_t marker[MARKER]);
/* Nothing more is under way: everything was answered. */
void host_settled(void);

#endif
