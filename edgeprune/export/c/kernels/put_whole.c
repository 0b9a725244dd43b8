/* Write a whole number as `whole` reads it. */
static void put_whole(int32_t *p, int32_t v)
{
    const unsigned char *from = (const unsigned char *)&v;
    unsigned char *to = (unsigned char *)p;
    to[0] = from[0], to[1] = from[1], to[2] = from[2], to[3] = from[3];
}
