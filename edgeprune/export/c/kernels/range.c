/* The integers that stand for 0 in what is read and in what is written, and the least and the most that is written. */
typedef struct {
    int32_t zero, out, low, high;
} range;
