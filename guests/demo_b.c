/* SPDX-License-Identifier: Apache-2.0
 *
 * The demo's second guest: computes the file's SHA-256, swaps the case of its ASCII letters in place, and sends
 * it back to where it came from, with the digest. */
#include "demo.h"
#include "pf.h"
#include "sha256.h"

#define CHUNK (1u << 20)

/* Reads and changes every byte once, in pieces, so that the user can see how far it is. */
static void process(char *data, uint64_t length, uint8_t digest[SHA256_BYTES])
{
    struct sha256 hash;

    sha256_start(&hash);
    for (uint64_t done = 0; done < length;) {
        uint64_t part = length - done < CHUNK ? length - done : CHUNK;
        sha256_add(&hash, data + done, part);
        for (uint64_t i = done; i < done + part; i++) {
            unsigned char letter = (unsigned char)(data[i] | 0x20);
            data[i] = (char)(data[i] ^ (letter >= 'a' && letter <= 'z' ? 0x20 : 0));
        }
        done += part;
        pf_progress(done, length);
    }
    sha256_end(&hash, digest);
}

static void process_and_reply(pf_message *file)
{
    uint8_t digest[SHA256_BYTES];

    pf_printf("got it at %p: computing its SHA-256, swapping the case of its letters in place", pf_data(file));
    process(pf_data(file), file->length, digest);
    file->tag = DEMO_RESULT;
    PF_CHECK(pf_reply(file, digest, sizeof digest) == PF_OK);
    pf_log("sent it back");
}

int main(void)
{
    pf_message message;
    uint64_t length;

    for (;;) {
        PF_CHECK(pf_receive(&message, PF_FOREVER) == PF_OK);
        switch (message.tag) {
        case DEMO_ANNOUNCE:
            pf_drop(&message);
            memcpy(&length, message.payload, sizeof length);
            pf_printf("a announces a file of %lu bytes", length);
            break;
        case DEMO_FILE:
            if (pf_owned(&message))
                process_and_reply(&message);
            else
                pf_drop(&message);
            break;
        case DEMO_TOUCH:
            if (!pf_owned(&message)) {
                pf_drop(&message);
                break;
            }
            message.receiver = PF_PEER_HOST;
            PF_CHECK(pf_transmit(&message) == PF_OK);
            break;
        case DEMO_END: return 0;
        default: pf_drop(&message); /* a tag that is not the demo's */
        }
    }
}
