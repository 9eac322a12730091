// Streams of all kinds, containers, algorithms.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <map>
#include <numeric>
#include <random>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <unordered_map>
#include <vector>

int main()
{
    std::cout << "integers " << 42 << ' ' << std::hex << std::showbase << 255 << std::dec << ' ' << -7L << '\n';
    std::cout << std::fixed << std::setprecision(3) << 3.14159 << ' ' << std::scientific << 12345.678 << '\n';
    std::cout << std::setw(8) << std::setfill('*') << 5 << std::boolalpha << ' ' << true << '\n';

    std::map<std::string, int> counts;
    std::string word;
    std::ifstream words("in/words");
    while (words >> word)
        ++counts[word];
    for (const auto &[name, count] : counts)
        std::cout << name << ' ' << count << '\n';

    std::string line;
    int lines = 0;
    while (std::getline(std::cin, line))
        std::cout << ++lines << ": " << line << '\n';

    std::ofstream out("out/table");
    for (int i = 0; i < 1000; ++i)
        out << i << ',' << i * i << ',' << std::sqrt(i) << '\n';
    out.close();
    std::ifstream again("out/table");
    long sum = 0;
    while (std::getline(again, line)) {
        std::istringstream parts(line);
        long a, b;
        char comma;
        parts >> a >> comma >> b;
        sum += a + b;
    }
    std::cout << "sum " << sum << '\n';

    std::mt19937 random(7);
    std::vector<int> numbers(10000);
    std::generate(numbers.begin(), numbers.end(), [&] { return static_cast<int>(random() % 100000); });
    std::sort(numbers.begin(), numbers.end());
    std::cout << numbers.front() << ' ' << numbers[5000] << ' ' << std::accumulate(numbers.begin(), numbers.end(), 0L) << '\n';
    std::unordered_map<int, int> seen;
    for (int number : numbers)
        ++seen[number % 1000];
    std::cout << seen.size() << ' ' << std::set<int>(numbers.begin(), numbers.end()).size() << '\n';

    std::regex pattern("(\\w+)@(\\w+)\\.org");
    std::smatch found;
    const std::string text = "write to someone@example.org today";
    if (std::regex_search(text, found, pattern))
        std::cout << found[1] << " at " << found[2] << '\n';

    std::set<std::string> names;
    for (const auto &entry : std::filesystem::directory_iterator("in"))
        names.insert(entry.path().filename().string());
    for (const auto &name : names)
        std::cout << name << ' ' << std::filesystem::file_size("in/" + name) << '\n';
    std::cerr << "done" << std::endl;
    std::ifstream none("in/none");
    std::cout << none.good() << std::endl;
    return 0;
}
