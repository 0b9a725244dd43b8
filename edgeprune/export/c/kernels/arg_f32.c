/* (outer, size, inner) to the places of the largest of (outer, inner), or of the smallest by a sign of -1. */
static void arg_f32(const float *x, int32_t *y, int32_t outer, int32_t size, int32_t inner, float sign, int last)
{
    int32_t o, i, r;
    for (o = 0; o < outer; o++, x += (size_t)size * inner)
        for (i = 0; i < inner; i++) {
            int32_t place = 0;
            for (r = 1; r < size; r++) {
                const float v = sign * x[(size_t)r * inner + i], most = sign * x[(size_t)place * inner + i];
                if (v > most || (last && v == most))
                    place = r;
            }
            put_whole(y++, place);
        }
}
