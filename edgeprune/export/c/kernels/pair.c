/* The integers that stand for 0 in two values, their multipliers, and the shift of both. */
typedef struct {
    int32_t left, right, by_left, by_right, shift;
} pair;
