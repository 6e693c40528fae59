#include <cstring>
#include <functional>
#include <map>

#include "check.h"

namespace {

using namespace genie::gpumem;

const std::map<std::string, std::function<void()>> scenarios = {
    {"registrations", check::registrations},
    {"soft", check::soft},
    {"cuda", check::cuda},
#ifdef GENIE_CHECK_PACKETS
    {"packets", check::packets},
#endif
#ifdef GENIE_CHECK_DPDK
    {"dpdk", check::dpdk},
#endif
};

}  // namespace

int main(int count, char** words) {
    for (int at = 1; at < count; ++at) {
        const auto found = scenarios.find(words[at]);
        try {
            if (found == scenarios.end()) throw check::Failed("this was built without it: its libraries are not here");
            found->second();
        } catch (const Unavailable& error) {
            std::printf("{\"check\": \"%s\", \"unavailable\": \"%s\"}\n", words[at], error.what());
        } catch (const std::exception& error) {
            std::fprintf(stderr, "%s: %s\n", words[at], error.what());
            return 1;
        }
    }
}
