/* Five nested loops over two arrays, each with its own step. */
typedef struct {
    int32_t size[5], a[5], b[5];
} walk;
