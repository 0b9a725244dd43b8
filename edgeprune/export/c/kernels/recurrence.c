/* What a recurrent layer reads and writes in one direction. */
typedef struct {
    int32_t steps, batch, in, hidden, stride, reverse;
} recurrence;
