#include "base/cpu.h"

#include <stdio.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

static void read_model(char *model, size_t size)
{
    char line[256];
    FILE *file = fopen("/proc/cpuinfo", "r");

    snprintf(model, size, "unknown processor");
    if (!file) return;
    while (fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon) continue;
        colon += 1 + (colon[1] == ' ');
        colon[strcspn(colon, "\n")] = 0;
        snprintf(model, size, "%s", colon);
        break;
    }
    fclose(file);
}

#if defined(__x86_64__)
/* Older clang does not know "f16c" in __builtin_cpu_supports. */
static bool has_f16c(void)
{
    unsigned a, b, c = 0, d;

    return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}
#endif

void fv_cpu_detect(fv_cpu *cpu)
{
    memset(cpu, 0, sizeof *cpu);
#if defined(__x86_64__)
    __builtin_cpu_init();
    cpu->avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    cpu->avx512f = cpu->avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    cpu->avx512 = cpu->avx512f && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
#endif
    read_model(cpu->model, sizeof cpu->model);
}

const char *fv_isa_name(fv_isa isa)
{
    static const char *const names[] = {"c", "avx2", "avx512f", "avx512"};

    return isa >= 0 && isa < FV_ISA_COUNT ? names[isa] : "?";
}
