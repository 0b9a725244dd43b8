/* A whole number, byte by byte: where it lies, floats may have lain before. */
static int32_t whole(const int32_t *p)
{
    const unsigned char *from = (const unsigned char *)p;
    int32_t v;
    unsigned char *to = (unsigned char *)&v;
    to[0] = from[0], to[1] = from[1], to[2] = from[2], to[3] = from[3];
    return v;
}
