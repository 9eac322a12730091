/* The first stage: letters become small, where they lie. */
#include "stage.h"

int main(void)
{
    struct block block;

    while (next_block(&block)) {
        for (size_t i = 0; i < block.count; i++)
            if (block.bytes[i] >= 'A' && block.bytes[i] <= 'Z')
                block.bytes[i] += 'a' - 'A';
        pass_on(&block, pf_peer("words"));
    }
    return pf_send_inline(pf_peer("words"), "", 0, 0);
}
