# Warnings and sanitizers for our own targets: `glassformer_options(target)`.
function(glassformer_options target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Werror
                                           -Wno-restrict)  # g++ 12 sees overlaps in std::string that are none
  if(GLASSFORMER_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${GLASSFORMER_SANITIZE} -fno-sanitize-recover=all
                                             -fno-omit-frame-pointer)
    target_link_options(${target} PRIVATE -fsanitize=${GLASSFORMER_SANITIZE})
  endif()
endfunction()
