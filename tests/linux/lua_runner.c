/* Lua with all of its libraries: `lua_runner SCRIPT ARGUMENT...` */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    lua_State *lua = luaL_newstate();

    luaL_openlibs(lua);
    lua_createtable(lua, argc, 0);
    for (int i = 0; i < argc; i++) {
        lua_pushstring(lua, argv[i]);
        lua_rawseti(lua, -2, i - 1);
    }
    lua_setglobal(lua, "arg");
    int failed = argc < 2 || luaL_dofile(lua, argv[1]) != LUA_OK;
    if (failed)
        fprintf(stderr, "%s\n", argc < 2 ? "no script" : lua_tostring(lua, -1));
    lua_close(lua);
    return failed;
}
